"""Handwritten digits of 8x8 pixels, on a CPU in a few minutes: the job that `python main.py` runs.

Data: the 1797 real digits that come with the package; 1500 to train on, 297 held out.
Method: denoising score matching at 32 noise levels (Song & Ermon 2019, equation 6) with a small U-Net that is told the class;
    annealed Langevin dynamics (Algorithm 1) with NCSNv2's step size rule and last denoising.
Cost: 105 s on two CPU cores, of which 8 compile, 70 train and 21 sample.
Reaches: fd_mlp 1.5 to 2.2, is_svc 8.1 to 8.2, one_nn 0.54 to 0.56 over three seeds (benchmarks/RESULTS.md).
Command: python main.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    data.source = "digits"  # or npz, idx, folder, zip, tfds: images of your own
    data.path = ""  # where they are
    data.name = ""  # of tfds, such as "mnist"
    data.train_split = "train"
    data.held_out_split = "test"
    data.crop = 0  # pixels of a central square that is cut out first; 0 cuts none
    data.size = 0  # height and width that images are resized to; 0 leaves them
    data.channels = 0  # 1 or 3; 0 leaves them
    data.dequantize = True  # (v + u) / 17
    data.logit = False
    data.flip = False
    data.labels = True  # each digit's own score, and as many of each as in the data; False learns the score of all together
    data.label_dropout = 0.1  # how often the network is not told the class, so that it knows the score of all together, too
    data.device_megabytes = 1024  # larger data sets are streamed from the host

    config.noise = noise = ml_collections.ConfigDict()
    noise.sigma_max = 1.0
    noise.sigma_min = 0.03
    noise.num_levels = 32

    config.model = model = ml_collections.ConfigDict()
    model.name = "unet"
    model.width = 24
    model.heads = 4
    model.groups = 4
    model.data_mean = 0.3
    model.data_std = 0.35
    model.dtype = "float32"  # or "bfloat16", for GPUs and TPUs

    config.loss = loss = ml_collections.ConfigDict()
    loss.name = "dsm"
    loss.levels = "stratified"
    loss.projection = "rademacher"  # this and the next two: of the sliced objective, "ssm"
    loss.num_projections = 1
    loss.variance_reduced = True

    config.optim = optim = ml_collections.ConfigDict()
    optim.learning_rate = 2e-3
    optim.schedule = "cosine"
    optim.warmup_steps = 200
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.epsilon = 1e-8
    optim.clip_norm = 1.0  # 0 does not clip
    optim.ema_decay = 0.999

    config.training = training = ml_collections.ConfigDict()
    training.batch_size = 128
    training.num_steps = 1500
    training.log_every = 50
    training.eval_every = 250
    training.eval_batches = 16
    training.preview_every = 500  # 0 shows none
    training.checkpoint_every = 500
    training.keep_checkpoints = 3
    training.steps_per_call = 10  # steps that are one program; more spend less time between them, and hear a Ctrl-C later

    config.sampling = sampling = ml_collections.ConfigDict()
    sampling.num_samples = 1000
    sampling.batch_size = 128
    sampling.method = "annealed"  # or "consistent"; or "langevin", the baseline at the last level only
    sampling.start = "normal"  # 0.5 + sigma_max z; or "uniform" in [0, 1]
    sampling.num_steps = 10  # per noise level
    sampling.step_size = 0.0  # 0 chooses it by NCSNv2's technique 4
    sampling.denoise = True
    sampling.num_frames = 16  # of the animation
    sampling.renew_known = True  # inpainting: noise the known pixels at every step, not once per level
    sampling.guidance = 4.0  # inpainting: weight of the pull towards the known pixels; 0 is the paper's algorithm
    return config
