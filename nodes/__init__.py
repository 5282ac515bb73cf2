"""What the user sees: schemas, and one call each."""
