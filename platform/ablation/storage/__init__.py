"""Where trials keep their files: a shared folder or a remote file system."""
