"""What is kept on the disk: written whole, locked, sealed, and no link followed that a stranger may have made."""
