"""What every algorithm uses: checks, guards, noise, whole files."""
