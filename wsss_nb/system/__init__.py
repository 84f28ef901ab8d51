"""What every room stands on and no paper mentions: errors, files, settings, progress, processes."""
