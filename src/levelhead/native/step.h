// Epochs of minibatches: gather, forward, loss, backward, clip, Adam.

static float norm_of(const float *x, int64_t n) {
    Vec total{};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) total += load(x + i) * load(x + i);
    float rest = sum(total);
    for (; i < n; i++) rest += x[i] * x[i];
    return std::sqrt(rest);
}

// Kingma and Ba 2015, algorithm 1, with the bias corrections in the step's length as torch has them.
struct Adam {
    float scale;  // of the gradient
    float rate, length, wide, eps, keep1, keep2;

    Adam(const Plan &plan, const Group &group, float gradient_scale)
        : scale(gradient_scale), rate(*group.learning_rate), eps(group.eps), keep1(plan.beta1), keep2(plan.beta2) {
        const double t = *group.step;
        length = (float)(rate / (1.0 - std::pow((double)keep1, t)));
        wide = (float)(1.0 / std::sqrt(1.0 - std::pow((double)keep2, t)));
    }

    void operator()(float *parameter, const float *gradient, float *exp_avg, float *exp_avg_sq) const {
        const Vec g = load(gradient) * scale, old = load(exp_avg);
        const Vec m = old + (1.0f - keep1) * (g - old);
        const Vec v = keep2 * load(exp_avg_sq) + (1.0f - keep2) * g * g;
        store(exp_avg, m);
        store(exp_avg_sq, v);
        store(parameter, load(parameter) - length * m / (root(v) * wide + eps));
    }
};

static void adam(const Plan &plan, Group &group, float scale) {
    *group.step += 1.0f;
    const Adam step(plan, group, scale);
    if (group.decay)
        for (int64_t i = 0; i < group.size; i++) group.parameter[i] *= 1.0f - step.rate * group.decay[i];
    float *const all[4] = {group.parameter, group.gradient, group.exp_avg, group.exp_avg_sq};
    const int64_t whole = group.size / WIDTH * WIDTH, rest = group.size - whole;
    for (int64_t i = 0; i < whole; i += WIDTH) step(all[0] + i, all[1] + i, all[2] + i, all[3] + i);
    float last[4][WIDTH] = {};
    for (int j = 0; j < 4; j++) std::memcpy(last[j], all[j] + whole, sizeof(float) * rest);
    step(last[0], last[1], last[2], last[3]);
    for (int j : {0, 2, 3}) std::memcpy(all[j] + whole, last[j], sizeof(float) * rest);
}

static const int64_t ROWS_AT_ONCE = 512;  // so that what layers answer stays in the cache, however large a minibatch is

struct Learner {
    const Plan &plan;
    Arena arena;
    Helper helper;
    int64_t parts;  // that a minibatch is gone through in
    int rows;       // of a part, up to whole vectors
    std::vector<Room> shared, actor, critic;
    float *x, *critic_dx;
    int64_t *index;
    float *weight;
    Categorical categorical;
    Gaussian gaussian;

    explicit Learner(const Plan &p)
        : plan(p),
          helper(p.threads > 1 && p.learn_actor && p.learn_critic),
          parts(p.size > ROWS_AT_ONCE ? (p.size + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE : 1),
          rows(padded((int)((p.size + parts - 1) / parts))),
          shared(make_rooms(p.shared, p.n_shared, rows, arena)),
          actor(make_rooms(p.actor, p.n_actor, rows, arena)),
          critic(make_rooms(p.critic, p.n_critic, rows, arena)),
          categorical{p, p.distribution, 0, nullptr, nullptr},
          gaussian{p, p.distribution, nullptr, nullptr, nullptr, nullptr} {
        x = arena.take<float>((int64_t)rows * padded(inputs()));
        critic_dx = arena.take<float>(shared.empty() ? 0 : (int64_t)rows * shared.back().out);
        index = arena.take<int64_t>(rows);
        weight = arena.take<float>(rows);
        if (plan.distribution.kind == CATEGORICAL) {
            for (int d = 0; d < plan.distribution.dims; d++) categorical.logits += plan.distribution.choices[d];
            categorical.log_p = arena.take<Vec>(categorical.logits);
            categorical.old_log_p = arena.take<Vec>(categorical.logits);
        } else {
            for (Vec **room : {&gaussian.error, &gaussian.distance, &gaussian.ratio, &gaussian.log_std_slope})
                *room = arena.take<Vec>(plan.distribution.dims);
        }
    }

    int inputs() const {
        return plan.n_shared ? plan.shared[0].inputs : plan.learn_actor ? plan.actor[0].inputs : plan.critic[0].inputs;
    }

    void gather_rows(int64_t minibatch, int64_t part) {
        const int d = inputs(), stride = padded(d);
        const int64_t first = minibatch * plan.size, start = part * rows;
        for (int r = 0; r < rows; r++) {
            const bool real = start + r < plan.size;
            index[r] = real ? plan.index[first + start + r] : plan.index[first];
            weight[r] = real ? plan.weight[first + start + r] : 0.0f;
            std::memcpy(x + (int64_t)r * stride, plan.batch.observation + index[r] * d, sizeof(float) * d);
        }
    }

    Advantages advantages(int64_t minibatch) const {
        if (!plan.standardize) return {0.0f, 1.0f};
        const int64_t *index = plan.index + minibatch * plan.size;
        const float *weight = plan.weight + minibatch * plan.size;
        double n = 0, total = 0, squares = 0;
        for (int64_t r = 0; r < plan.size; r++) {
            if (weight[r] <= 0) continue;
            const double x = plan.batch.advantage[index[r]];
            n++, total += x;
        }
        const double mean = n > 0 ? total / n : 0;
        for (int64_t r = 0; r < plan.size; r++)
            if (weight[r] > 0) squares += (plan.batch.advantage[index[r]] - mean) * (plan.batch.advantage[index[r]] - mean);
        const double std = n > 0 ? std::sqrt(squares / n) : 0;
        if (std != std) return {0.0f, (float)std};
        const double magnitude = std::sqrt(mean * mean + std * std);
        return {mean, std > ROUNDING * magnitude ? (float)(1 / std) : 0.0f};  // what varies by rounding alone doesn't vary
    }

    template <class Head>
    void actor_loss(Head &head, const Advantages &scale, Sums &sums) {
        Room &last = actor.back();
        for (int r = 0; r < rows; r += WIDTH) {
            const Rows block{index + r, load(weight + r)};
            const float *y = last.y + (int64_t)r * last.out;
            const Said said = head.evaluate(y, last.out, block);
            const Slopes slopes = surrogate(plan, block, said, scale, sums);
            head.backward(last.dy + (int64_t)r * last.out, last.out, block, slopes);
        }
    }

    // Adds a part's share to the means of the actor's losses, and to its gradients.
    void learn_actor(const float *features, const Advantages &scale, Sums &sums) {
        if (!plan.learn_actor) return;
        forward(actor, features, rows);
        if (plan.distribution.kind == CATEGORICAL) {
            actor_loss(categorical, scale, sums);
        } else {
            for (int d = 0; d < plan.distribution.dims; d++) gaussian.log_std_slope[d] = Vec{};
            actor_loss(gaussian, scale, sums);
            if (float *gradient = plan.distribution.log_std_gradient)
                for (int d = 0; d < plan.distribution.dims; d++) gradient[d] += sum(gaussian.log_std_slope[d]);
        }
        backward(actor, features, shared.empty() ? nullptr : shared.back().dy, rows);
    }

    void learn_critic(const float *features, Sums &sums) {
        if (!plan.learn_critic) return;
        forward(critic, features, rows);
        Room &last = critic.back();
        std::memset(last.dy, 0, sizeof(float) * rows * last.out);
        for (int r = 0; r < rows; r += WIDTH) {
            const Rows block{index + r, load(weight + r)};
            value_loss(plan, block, last.y + (int64_t)r * last.out, last.dy + (int64_t)r * last.out, last.out, sums);
        }
        // Alone, the critic leaves what it shares with the actor as it is.
        backward(critic, features, shared.empty() || !plan.learn_actor ? nullptr : critic_dx, rows);
    }

    // Means over the minibatch, gradients in the groups.
    Sums gradient(int64_t minibatch) {
        for (int g = 0; g < plan.n_groups; g++)
            std::memset(plan.groups[g].gradient, 0, sizeof(float) * plan.groups[g].size);
        const Advantages scale = advantages(minibatch);
        Sums sums{}, of_critic{};
        for (int64_t part = 0; part < parts; part++) {
            gather_rows(minibatch, part);
            if (!part) read_parameters(shared);
            const float *features = forward(shared, x, rows);
            const auto act = [&] {
                if (!part) read_parameters(actor);
                learn_actor(features, scale, sums);
            };
            const auto value = [&] {
                if (!part) read_parameters(critic);
                learn_critic(features, of_critic);
            };
            helper.both(act, value);
            if (shared.empty() || !plan.learn_actor) continue;
            float *dy = shared.back().dy;
            if (plan.learn_critic)
                for (int64_t i = 0; i < (int64_t)rows * shared.back().out; i += WIDTH)
                    store(dy + i, load(dy + i) + load(critic_dx + i));
            backward(shared, x, nullptr, rows);
        }
        sums.mean[VALUE_LOSS] = of_critic.mean[VALUE_LOSS];
        sums.mean[LOSS] = (plan.learn_actor ? sums.mean[POLICY_LOSS] + plan.entropy_coef * sums.mean[ENTROPY_LOSS] : 0) +
                          (plan.learn_critic ? plan.value_coef * sums.mean[VALUE_LOSS] : 0);
        return sums;
    }

    // Whether there is to be another one: the divergence was within its limit, and no rank was lost.
    bool step(int64_t minibatch) {
        Sums sums = gradient(minibatch);
        if (plan.reduce && plan.reduce(sums.mean)) return false;
        float norm[4] = {}, whole = 0;  // there are at most shared, actor and critic
        for (int g = 0; g < plan.n_groups; g++) {
            if (!plan.groups[g].moves) continue;
            norm[g] = norm_of(plan.groups[g].gradient, plan.groups[g].size);
            whole += norm[g] * norm[g];
        }
        bool fine = std::isfinite((float)sums.mean[LOSS]);
        plan.broken[0] |= !fine;
        for (int g = 0; g < plan.n_groups; g++) {
            if (!plan.groups[g].moves) continue;
            plan.broken[1 + g] |= !std::isfinite(norm[g]);
            fine &= std::isfinite(norm[g]);
        }
        if (!fine) *plan.blocked = 1.0f;
        if (plan.kl_limit > 0 && sums.mean[KL] > plan.kl_limit) return false;
        for (int m = 0; m < MEANS; m++) plan.means[m] += (float)sums.mean[m];
        for (int g = 0; g < plan.n_groups; g++) plan.means[MEANS + g] += norm[g];
        ++*plan.counted;
        if (*plan.blocked != 0.0f) return true;
        const auto move = [&](int g) {
            if (!plan.groups[g].moves) return;
            const float length = plan.max_norm > 0 ? std::sqrt(whole) : norm[g];
            const float limit = plan.max_norm > 0 ? plan.max_norm : plan.groups[g].max_norm;
            adam(plan, plan.groups[g], length > limit ? limit / length : 1.0f);
        };
        const int last = plan.n_groups - 1;
        const auto others = [&] {
            for (int g = 0; g < last; g++) move(g);
        };
        helper.both(others, [&] { move(last); });
        return true;
    }
};

static void epochs(const Plan &plan) {
    Learner learner(plan);
    for (int64_t m = 0; m < plan.minibatches; m++)
        if (!learner.step(m)) break;
}
