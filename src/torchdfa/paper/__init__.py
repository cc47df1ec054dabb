"""The paper's experiments on CIFAR: recipes, result files, and the tables, figures and page drawn from these alone."""
