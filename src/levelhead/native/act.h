// Acting: observations to sampled actions, for a handful of environments at a time.

class MlpActor : public Actor {
   public:
    // Parameters are read here, once: what acts is the policy as it is now.
    explicit MlpActor(const Acting &p) : plan(p), rooms(make_rooms(p.layers, p.n_layers, p.rows, arena)) {
        x = arena.take<float>((int64_t)plan.rows * rooms[0].in);
        for (Room &room : rooms) read_parameters(room);
        if (plan.distribution.kind == CATEGORICAL) return;
        deviation = arena.take<float>(plan.distribution.dims);
        for (int d = 0; d < plan.distribution.dims; d++) deviation[d] = std::exp(plan.distribution.log_std[d]);
    }

    void act(const void *observation, const float *noise, const uint8_t *legal, void *action, float *parameters,
             void *given) override {
        if (plan.wide)
            read(static_cast<const double *>(observation));
        else
            read(static_cast<const float *>(observation));
        forward(rooms, x, plan.rows);
        if (plan.distribution.kind == CATEGORICAL)
            pick(noise, legal, static_cast<int64_t *>(action), parameters, static_cast<int64_t *>(given));
        else
            draw(noise, static_cast<float *>(action), parameters, static_cast<float *>(given));
    }

   private:
    const Acting plan;
    Arena arena;
    std::vector<Room> rooms;
    float *x, *deviation;

    template <class Number>
    void read(const Number *observation) {
        const int d = rooms[0].layer.inputs;
        for (int r = 0; r < plan.rows; r++) {
            float *row = x + (int64_t)r * rooms[0].in;
            for (int i = 0; i < d; i++) row[i] = (float)observation[(int64_t)r * d + i];
            for (int i = 0; i < d && plan.mean; i++) {
                const double z = (row[i] - plan.mean[i]) / plan.std[i];
                row[i] = (float)(z < -plan.clip ? -plan.clip : z > plan.clip ? plan.clip : z);
            }
        }
    }

    // The first of the greatest, where NaN is greater than all; noise has as many columns for each dimension as the one
    // with the most choices.
    void pick(const float *noise, const uint8_t *legal, int64_t *action, float *logits, int64_t *given) const {
        const Distribution &of = plan.distribution;
        const Room &last = rooms.back();
        int columns = 0;
        for (int d = 0; d < of.dims; d++) columns = of.choices[d] > columns ? of.choices[d] : columns;
        for (int r = 0, at = 0; r < plan.rows; r++) {
            const float *y = last.y + (int64_t)r * last.out;
            for (int d = 0; d < of.dims; d++, noise += columns, action++, given++) {
                float best = 0.0f;
                for (int a = 0; a < of.choices[d]; a++, at++) {
                    logits[at] = legal && !legal[at] ? ILLEGAL : *y;
                    y++;
                    const float x = logits[at] + noise[a];
                    if (a && !(x > best) && !(x != x && best == best)) continue;
                    best = x;
                    *action = a;
                }
                *given = *action + plan.start[d];
            }
        }
    }

    void draw(const float *noise, float *action, float *mean, float *given) const {
        const Room &last = rooms.back();
        const int dims = plan.distribution.dims;
        for (int r = 0; r < plan.rows; r++)
            for (int d = 0; d < dims; d++, noise++, action++, mean++, given++) {
                *mean = last.y[(int64_t)r * last.out + d];
                *action = *mean + *noise * deviation[d];
                const float x = plan.center ? plan.center[d] + plan.half_range[d] * *action : *action;
                *given = x < plan.low[d] ? plan.low[d] : x > plan.high[d] ? plan.high[d] : x;
            }
    }
};

Actor *new_actor(const Acting &plan) { return new MlpActor(plan); }
