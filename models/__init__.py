"""What the papers say: networks, injection rules and file formats, with torch alone."""
