"""What every stage stands on: settings, folders, records, storage, signals, processes."""
