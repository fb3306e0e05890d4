"""What makes data that the package ships; nothing here is needed to run it."""
