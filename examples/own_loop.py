"""Two methods, KD and attention transfer, in a hand-written optax loop on handwritten digits.

    python -m examples.own_loop

Methods are called directly here; `atkd.TrainStep` is what the command line uses instead.
"""

import jax
import numpy as np
import optax

import atkd_jax as atkd

DATA = atkd.data.load("digits")
KEY = jax.random.key(0)
TEACHER, STUDENT = (
    atkd.Network(atkd.models.create(name, 10), DATA.info.mean, DATA.info.std)
    for name in ("resnet14", "resnet8")
)
METHODS = {atkd.methods.KD(temperature=4.0): 0.9, atkd.methods.AT(): 1000.0}  # and their weights


def fit(network, methods, teacher_variables, epochs, batch_size=64):
    """Trains a network; returns its variables and the loss of every step."""
    variables = jax.jit(network.module.init)(KEY, np.zeros((1, *DATA.info.image_shape)))
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    opt_state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, batch):
        image = batch.image / 255.0

        def loss_fn(params):
            own = variables | {"params": params}
            s, updated = network.apply(own, image, train=True, mutable=["batch_stats"])
            ce = optax.softmax_cross_entropy_with_integer_labels(s.logits, batch.label).mean()
            loss = 0.1 * ce if methods else ce
            if methods:
                t = TEACHER.apply(teacher_variables, image)
            for method, weight in methods.items():  # neither learns anything of its own: no Extras
                out = method.loss(atkd.Extras(), t, s, batch, atkd.Context(KEY))
                loss += weight * out.loss
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **updated}, opt_state, loss

    losses = []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(DATA.train.label))
        for i in range(0, len(order) - batch_size + 1, batch_size):
            rows = order[i : i + batch_size]
            batch = atkd.Batch(DATA.train.image[rows], DATA.train.label[rows], rows)
            variables, opt_state, loss = step(variables, opt_state, batch)
            losses.append(float(loss))
    return variables, losses


def top1(network, variables):
    logits = jax.jit(network.apply)(variables, DATA.test.image / np.float32(255)).logits
    return 100 * float(np.mean(np.argmax(logits, 1) == DATA.test.label))


def main(epochs=6):
    teacher_variables, _ = fit(TEACHER, {}, None, epochs)
    print(f"teacher: top-1 {top1(TEACHER, teacher_variables):.1f}")
    student_variables, losses = fit(STUDENT, METHODS, teacher_variables, epochs)
    print(
        f"student: top-1 {top1(STUDENT, student_variables):.1f}, loss {losses[0]:.2f} ->"
        f" {losses[-1]:.2f}"
    )


if __name__ == "__main__":
    main()
