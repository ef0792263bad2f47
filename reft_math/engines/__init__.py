"""Gates inside inference engines."""
