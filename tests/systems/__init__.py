"""Real drivers on real servers. ``nox -s systems`` runs all of it, in the environments it needs."""
