"""A finished model, uploaded to the hub: only if that is asked for, and private unless told."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from small_modernbert.runs import hub
from small_modernbert.runs.errors import UserError


def need_access(repository: str) -> str:
    """Return the hub's token: HF_TOKEN of the environment, or that of `hf auth login`.

    Raises:
        UserError: there is none, or the repository is not named as the hub wants it.
    """
    try:
        validate_repo_id(repository)
        named = "/" in repository
    except HFValidationError:
        named = False
    if not named:
        raise UserError(
            f"--push needs a repository, not {repository!r}: --model-repository-name owner/name"
        )
    token = get_token()
    if not token:
        raise UserError("--push needs a token of the hub: set HF_TOKEN, or run: hf auth login")
    return token


def push(folder: Path, repository: str, message: str, *, public: bool = False) -> str:
    """Upload a folder as a new version of a model repository; create that if it is not there.

    Args:
        folder: of the model, its card included.
        repository: owner/name; one that is there stays as private or public as it is.
        message: of the commit.
        public: whether everybody may see a repository that this creates.

    Returns:
        The commit's address.

    Raises:
        UserError: there is no token, it may not write there, or the hub cannot be reached.
    """
    api = HfApi(token=need_access(repository))
    try:
        api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        made = api.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message=message
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"the hub's token may not write to {repository} ({status}); run: hf auth login "
                "with a token that may"
            ) from None
        raise hub.explain(error, f"repository {repository}") from None
    except Exception as error:  # whatever the hub's many libraries raise, with the cure
        raise hub.explain(error, f"repository {repository}") from None
    return made.commit_url
