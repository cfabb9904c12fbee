"""What operators see of the bridge. Costs nothing where it is switched off."""
