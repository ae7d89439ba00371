"""From labelled data to a bundle: data sets, models, training, distillation, stages, studies and the command line."""
