// The losses of actor and critic and their gradients, WIDTH rows of a minibatch at a time.

static const float LOG_SQRT_2PI = 0.918938533204672742f;
static const float ILLEGAL = -3.40282347e38f / 128.0f;  // a logit so low that its choice has no probability at all

struct Rows {  // which rows of the batch make up a block of WIDTH, and what each weighs
    const int64_t *index;
    Vec weight;
};

static inline Vec gather(const float *p, const Rows &rows) {
    Vec v;
    for (int i = 0; i < WIDTH; i++) v[i] = p[rows.index[i]];
    return v;
}

// What a distribution says of the actions taken; the divergence is from the distribution that acted.
struct Said {
    Vec log_prob, entropy, kl;
};

// From that, slopes of the loss by log-probability, entropy and divergence.
struct Slopes {
    Vec log_prob, entropy, kl;
};

struct Sums {
    double mean[MEANS];
};

// One dimension's choices side by side: logits of WIDTH rows, then log-probabilities; masked as torch does it.
static inline void log_softmax(Vec *x, int n) {
    Vec top = x[0];
    for (int a = 1; a < n; a++) top = most(top, x[a]);
    for (int a = 0; a < n; a++) top = choose(x[a] != x[a], x[a], top);
    Vec total{};
    for (int a = 0; a < n; a++) total += exp_(x[a] - top);
    const Vec shift = top + log_(total);
    for (int a = 0; a < n; a++) x[a] -= shift;
}

struct Categorical {
    const Plan &plan;
    const Distribution &of;
    int logits;
    Vec *log_p, *old_log_p;  // [logits]

    Said evaluate(const float *y, int64_t stride, const Rows &rows) {
        Said said{};
        int first = 0;
        for (int d = 0; d < of.dims; first += of.choices[d++]) {
            const int n = of.choices[d];
            Vec *p = log_p + first;
            for (int a = 0; a < n; a++) {
                p[a] = column(y + first + a, stride);
                if (plan.batch.legal)
                    for (int i = 0; i < WIDTH; i++)
                        if (!plan.batch.legal[rows.index[i] * logits + first + a]) p[a][i] = ILLEGAL;
            }
            log_softmax(p, n);
            for (int a = 0; a < n; a++) said.entropy -= exp_(p[a]) * p[a];
            for (int i = 0; i < WIDTH; i++) said.log_prob[i] += p[plan.batch.choice[rows.index[i] * of.dims + d]][i];
            if (!plan.batch.old_parameters) continue;
            Vec *q = old_log_p + first;
            for (int a = 0; a < n; a++)
                for (int i = 0; i < WIDTH; i++)
                    q[a][i] = plan.batch.old_parameters[rows.index[i] * logits + first + a];
            log_softmax(q, n);
            for (int a = 0; a < n; a++) said.kl += exp_(q[a]) * (q[a] - p[a]);
        }
        return said;
    }

    void backward(float *dy, int64_t stride, const Rows &rows, const Slopes &by) {
        int first = 0;
        for (int d = 0; d < of.dims; first += of.choices[d++]) {
            Vec entropy{};
            for (int a = 0; a < of.choices[d]; a++) entropy -= exp_(log_p[first + a]) * log_p[first + a];
            for (int a = 0; a < of.choices[d]; a++) {
                const int at = first + a;
                const Vec p = exp_(log_p[at]);
                Vec taken{};
                for (int i = 0; i < WIDTH; i++)
                    taken[i] = plan.batch.choice[rows.index[i] * of.dims + d] == a;
                Vec slope = by.log_prob * (taken - p) - by.entropy * p * (log_p[at] + entropy);
                if (plan.batch.old_parameters) slope += by.kl * (p - exp_(old_log_p[at]));
                if (plan.batch.legal)
                    for (int i = 0; i < WIDTH; i++)
                        if (!plan.batch.legal[rows.index[i] * logits + at]) slope[i] = 0.0f;
                set_column(dy + at, stride, slope);
            }
        }
    }
};

struct Gaussian {
    const Plan &plan;
    const Distribution &of;
    Vec *error, *distance, *ratio;  // [dims]: standardised error; mean's way, and variance's share, from what acted
    Vec *log_std_slope;       // [dims], summed over blocks

    Said evaluate(const float *y, int64_t stride, const Rows &rows) {
        Said said{};
        for (int d = 0; d < of.dims; d++) {
            const Vec mean = column(y + d, stride), log_std = splat(of.log_std[d]), precision = exp_(-log_std);
            Vec action;
            for (int i = 0; i < WIDTH; i++) action[i] = plan.batch.action[rows.index[i] * of.dims + d];
            error[d] = (action - mean) * precision;
            said.log_prob -= 0.5f * error[d] * error[d] + log_std + LOG_SQRT_2PI;
            said.entropy += log_std + (0.5f + LOG_SQRT_2PI);
            if (!plan.batch.old_parameters) continue;
            Vec old_mean, old_log_std;
            for (int i = 0; i < WIDTH; i++) {
                old_mean[i] = plan.batch.old_parameters[rows.index[i] * of.dims + d];
                old_log_std[i] = plan.batch.old_log_std[rows.index[i] * of.dims + d];
            }
            ratio[d] = exp_(2.0f * (old_log_std - log_std));
            distance[d] = (mean - old_mean) * precision;
            said.kl += 0.5f * (ratio[d] + distance[d] * distance[d] - 1.0f) + log_std - old_log_std;
        }
        return said;
    }

    void backward(float *dy, int64_t stride, const Rows &, const Slopes &by) {
        for (int d = 0; d < of.dims; d++) {
            const Vec precision = exp_(-splat(of.log_std[d]));
            Vec slope = by.log_prob * error[d] * precision;
            Vec wide = by.log_prob * (error[d] * error[d] - 1.0f) + by.entropy;
            if (plan.batch.old_parameters) {
                slope += by.kl * distance[d] * precision;
                wide += by.kl * (1.0f - ratio[d] - distance[d] * distance[d]);
            }
            set_column(dy + d, stride, slope);
            log_std_slope[d] += wide;
        }
    }
};

struct Advantages {  // of a minibatch, standardised once more where the plan says so
    double mean;
    float factor;
};

static const double ROUNDING = 1e-6;  // of the root mean square, as in numerics.py
static const float LARGEST_LOG_RATIO = 80.0f;  // as in losses.py

// Loss, its slopes, and what is reported, of one block.
static inline Slopes surrogate(const Plan &plan, const Rows &rows, const Said &said, const Advantages &scale,
                               Sums &sums) {
    const Vec w = rows.weight;
    Vec advantage;
    for (int i = 0; i < WIDTH; i++) advantage[i] = (float)(plan.batch.advantage[rows.index[i]] - scale.mean) * scale.factor;
    const Vec difference = said.log_prob - gather(plan.batch.log_prob, rows);
    const Int over = difference > LARGEST_LOG_RATIO;
    const Vec log_ratio = choose(over, splat(LARGEST_LOG_RATIO), difference), ratio = exp_(log_ratio);
    const Vec ratio_slope = choose(over, splat(0.0f), ratio);
    Vec loss{}, slope{};  // by log-probability
    switch (plan.objective) {
        case CLIP: {
            const Vec clipped = most(least(ratio, splat(1.0f + plan.clip_range)), splat(1.0f - plan.clip_range));
            const Int smaller = clipped * advantage < ratio * advantage;
            Vec gain = choose(smaller, clipped, ratio) * advantage;
            Vec rise = choose(smaller, splat(0.0f), ratio_slope * advantage);
            if (plan.dual_clip > 0.0f) {
                const Int floored = (advantage < 0.0f) & (gain < plan.dual_clip * advantage);
                gain = choose(floored, plan.dual_clip * advantage, gain);
                rise = choose(floored, splat(0.0f), rise);
            }
            loss = -gain, slope = -rise;
            const Int outside = magnitude(ratio - 1.0f) > plan.clip_range;
            sums.mean[CLIP_FRACTION] += sum(w * choose(outside, splat(1.0f), splat(0.0f)));
            break;
        }
        case PENALTY:
            loss = plan.penalty * said.kl - ratio * advantage, slope = -ratio_slope * advantage;
            break;
        case POLICY_GRADIENT:
            loss = -said.log_prob * advantage, slope = -advantage;
            break;
    }
    sums.mean[POLICY_LOSS] += sum(w * loss);
    sums.mean[ENTROPY_LOSS] -= sum(w * said.entropy);
    sums.mean[APPROX_KL] += sum(w * (expm1_(log_ratio) - log_ratio));
    if (plan.batch.old_parameters) sums.mean[KL] += sum(w * said.kl);
    return {w * slope, -plan.entropy_coef * w, plan.objective == PENALTY ? plan.penalty * w : Vec{}};
}

// The critic's; dy has room for one number per task.
static inline void value_loss(const Plan &plan, const Rows &rows, const float *y, float *dy, int64_t stride,
                              Sums &sums) {
    Vec z, scale = splat(1.0f);
    int64_t at[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
        const int64_t task = plan.batch.task ? plan.batch.task[rows.index[i]] : 0;
        at[i] = i * stride + task;
        z[i] = y[at[i]];
        if (plan.value_scale) {
            scale[i] = plan.value_scale[task];
            z[i] = (z[i] - plan.value_shift[task]) * scale[i];
        }
    }
    const Vec target = gather(plan.batch.target, rows);
    Vec error = z - target, passes = splat(1.0f);
    if (plan.value_clip > 0.0f) {
        const Vec old = gather(plan.batch.old_value, rows);
        const Vec clipped = most(least(z, old + plan.value_clip), old - plan.value_clip) - target;
        const Int worse = magnitude(clipped) > magnitude(error);
        error = choose(worse, clipped, error);
        passes = choose(worse, splat(0.0f), passes);
    }
    Vec loss = error * error, slope = 2.0f * error;
    if (plan.value_huber > 0.0f) {
        const Int far = magnitude(error) > plan.value_huber;
        loss = choose(far, plan.value_huber * (2.0f * magnitude(error) - plan.value_huber), loss);
        slope = choose(far, choose(error > 0.0f, splat(2.0f), splat(-2.0f)) * plan.value_huber, slope);
    }
    sums.mean[VALUE_LOSS] += sum(rows.weight * loss);
    slope = plan.value_coef * rows.weight * slope * passes * scale;
    for (int i = 0; i < WIDTH; i++) dy[at[i]] = slope[i];
}
