"""Tasks in processes of their own: handed out, watched, and told of while they run."""
