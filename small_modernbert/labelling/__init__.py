"""What teachers and judges say of texts: labels, mined negatives, scores."""
