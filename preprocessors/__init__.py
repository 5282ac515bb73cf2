"""Pictures in, hints out: one file and one public function for each type of hint."""
