"""Features and token states that other projects computed -> this project's stores."""
