"""What experiments have in common: options, the loop over trials, results, tasks, and who speaks in a reply."""
