"""Several runs on one page: a sweep's folder, or any runs beside one another.

paths -> found.py, sweep.py (which runs) -> jobs.py (each as it was) -> varied.py (what differs) -> leaderboard.py,
effects.py, curves.py, parallel.py, failures.py, cost.py, differences.py -> page.py
"""
