"""`jpgen evolve`: a search for the numbers of a merge recipe by the pictures it draws (study file, prompts, scorers, processes, report)."""
