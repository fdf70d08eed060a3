"""What the examples on simple_spread end with: the learning curve as a picture, the best checkpoint, the final return."""

from __future__ import annotations

import csv
from pathlib import Path

from coterie.trainers import SequentialTrainer


def report(trainer: SequentialTrainer, seconds: float, episodes: int) -> float:
    """Evaluate a trained team, and say where its curve and its checkpoint are.

    :param seconds: that training took
    :param episodes: of the evaluation

    :return: the mean evaluation return, summed over agents
    """
    agent = trainer.agents
    results = trainer.eval(episodes=episodes)
    try:
        print(f"learning curve: {plot(agent.experiment_dir)}")
    except ImportError:
        print(f"learning curve: {agent.experiment_dir / 'metrics.csv'} (a picture of it needs matplotlib)")
    print(f"checkpoint of the best evaluation: {agent.best_checkpoint}")
    env_steps = trainer.timesteps * trainer.env.num_envs
    print(
        f"final evaluation return: {results['mean']:.2f} (sum over agents) after {env_steps} env steps in {seconds:.0f} s"
    )
    return results["mean"]


def plot(directory: Path) -> Path:
    """Draw the returns in ``metrics.csv`` over environment steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with (directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for column, label in (
        ("return", "training episodes (as explored)"),
        ("evaluation_return", "evaluation (most probable actions)"),
    ):
        points = [(int(row["timestep"]), float(row[column])) for row in rows if row[column]]
        axes.plot(*zip(*points, strict=True), label=label, marker="." if column != "return" else None)
    axes.set_xlabel("steps of the vectorised environment")
    axes.set_ylabel("return, summed over agents")
    axes.set_title(directory.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = directory / "learning_curve.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
