"""The data of the starter model: openly licensed emoji, icons and avatars, and the scenes that are composed of them."""
