"""KD and attention transfer in a hand-written optax loop, on handwritten digits.

    python -m examples.own_loop

Methods are called directly; `atkd.TrainStep` is what the command line uses instead.
"""

import jax
import numpy as np
import optax

import atkd_jax as atkd

METHODS = {atkd.methods.KD(temperature=4.0): 0.9, atkd.methods.AT(): 1000.0}  # and their weights


def fit(network, data, teach=None, epochs=6, batch_size=64):
    """Trains a network; `teach` maps images to a teacher's output. Returns variables and losses."""
    variables = jax.jit(network.module.init)(jax.random.key(0), data.train.image[:1] / 255)
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    opt_state, losses = tx.init(variables["params"]), []

    @jax.jit
    def step(variables, opt_state, batch):
        def loss_fn(params):
            image, own = batch.image / 255.0, variables | {"params": params}
            s, updated = network.apply(own, image, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(s.logits, batch.label).mean()
            if teach is not None:
                loss, t, ctx = 0.1 * loss, teach(image), atkd.Context(jax.random.key(0))
                for method, weight in METHODS.items():  # without parameters or state: no Extras
                    loss += weight * method.loss(atkd.Extras(), t, s, batch, ctx).loss
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        return (
            {"params": optax.apply_updates(variables["params"], updates), **updated},
            opt_state,
            loss,
        )

    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(data.train.label))
        for rows in np.split(order, range(batch_size, len(order), batch_size))[:-1]:
            batch = atkd.Batch(data.train.image[rows], data.train.label[rows], rows)
            variables, opt_state, loss = step(variables, opt_state, batch)
            losses.append(float(loss))
    return variables, losses


def main(epochs=6):
    data = atkd.data.load("digits")
    teacher, student = (
        atkd.Network(atkd.models.create(name, num_classes=10), data.info.mean, data.info.std)
        for name in ("resnet14", "resnet8")
    )
    taught, _ = fit(teacher, data, epochs=epochs)
    learned, losses = fit(student, data, lambda image: teacher.apply(taught, image), epochs)
    logits = jax.jit(student.apply)(learned, data.test.image / 255).logits
    top1 = 100 * np.mean(np.argmax(logits, 1) == data.test.label)
    print(f"top-1 {top1:.1f}, loss {losses[0]:.2f} -> {losses[-1]:.2f}")


if __name__ == "__main__":
    main()
