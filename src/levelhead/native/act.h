// Without learning: observations to features, and to sampled actions for a handful of environments at a time.

// Layers, and what is done to observations before them.
class Reader {
   public:
    // Parameters are read here, once: they are what they are now.
    explicit Reader(const Reading &p) : plan(p), rooms(make_rooms(p.layers, p.n_layers, p.rows, arena)) {
        x = arena.take<float>((int64_t)plan.rows * rooms[0].in);
        read_parameters(rooms);
    }

    // The last layer's answers to at most as many rows as there is room for, `last().out` apart.
    const float *operator()(const void *observation, int rows) {
        if (plan.wide)
            read(static_cast<const double *>(observation), rows);
        else
            read(static_cast<const float *>(observation), rows);
        return forward(rooms, x, rows);
    }

    const Room &last() const { return rooms.back(); }

   private:
    const Reading plan;
    Arena arena;
    std::vector<Room> rooms;
    float *x;

    template <class Number>
    void read(const Number *observation, int rows) {
        const int d = rooms[0].layer.inputs;
        for (int r = 0; r < rows; r++) {
            float *row = x + (int64_t)r * rooms[0].in;
            for (int i = 0; i < d; i++) row[i] = (float)observation[(int64_t)r * d + i];
            for (int i = 0; i < d && plan.mean; i++) {
                const double z = (row[i] - plan.mean[i]) / plan.std[i];
                row[i] = (float)(z < -plan.clip ? -plan.clip : z > plan.clip ? plan.clip : z);
            }
        }
    }
};

// What layers answer to any number of rows, `[rows, outputs]`.
static void features(const Reading &plan, const void *observation, int64_t rows, float *answers) {
    Reader reader(plan);
    const Layer &first = plan.layers[0], &last = reader.last().layer;
    const int64_t size = (int64_t)first.inputs * (plan.wide ? sizeof(double) : sizeof(float));
    for (int64_t start = 0; start < rows; start += plan.rows) {
        const int n = (int)(rows - start < plan.rows ? rows - start : plan.rows);
        const float *y = reader(static_cast<const char *>(observation) + start * size, n);
        for (int r = 0; r < n; r++)
            std::memcpy(answers + (start + r) * last.outputs, y + (int64_t)r * reader.last().out,
                        sizeof(float) * last.outputs);
    }
}

class MlpActor : public Actor {
   public:
    explicit MlpActor(const Acting &p) : plan(p), of(plan.distribution), reader(p.reading) {
        if (of.kind == CATEGORICAL) {
            for (int d = 0; d < of.dims; d++) {
                logits += of.choices[d];
                columns = of.choices[d] > columns ? of.choices[d] : columns;
            }
            return;
        }
        deviation = arena.take<float>(of.dims);
        for (int d = 0; d < of.dims; d++) deviation[d] = std::exp(of.log_std[d]);
    }

    void act(int64_t t, const uint8_t *legal) override {
        const int64_t rows = plan.reading.rows, inputs = plan.reading.layers[0].inputs;
        const int64_t size = plan.reading.wide ? sizeof(double) : sizeof(float);
        const float *y = reader(static_cast<const char *>(plan.observation) + t * rows * inputs * size, (int)rows);
        const int64_t at = t * rows * of.dims;
        if (of.kind == CATEGORICAL)
            pick(y, plan.noise + at * columns, legal, static_cast<int64_t *>(plan.action) + at,
                 plan.parameters + t * rows * logits, static_cast<int64_t *>(plan.given) + at);
        else
            draw(y, plan.noise + at, static_cast<float *>(plan.action) + at, plan.parameters + at,
                 static_cast<float *>(plan.given) + at);
    }

   private:
    const Acting plan;
    const Distribution &of;
    Reader reader;
    Arena arena;
    int logits = 0, columns = 0;  // all of them, and those of the dimension with the most choices
    float *deviation = nullptr;

    // The first of the greatest, where NaN is greater than all; each dimension's noise has room for the most choices.
    void pick(const float *answers, const float *noise, const uint8_t *legal, int64_t *action, float *parameters,
              int64_t *given) const {
        for (int r = 0, at = 0; r < plan.reading.rows; r++) {
            const float *y = answers + (int64_t)r * reader.last().out;
            for (int d = 0; d < of.dims; d++, noise += columns, action++, given++) {
                float best = 0.0f;
                for (int a = 0; a < of.choices[d]; a++, at++) {
                    parameters[at] = legal && !legal[at] ? ILLEGAL : *y;
                    y++;
                    const float x = parameters[at] + noise[a];
                    if (a && !(x > best) && !(x != x && best == best)) continue;
                    best = x;
                    *action = a;
                }
                *given = *action + plan.start[d];
            }
        }
    }

    void draw(const float *answers, const float *noise, float *action, float *mean, float *given) const {
        for (int r = 0; r < plan.reading.rows; r++)
            for (int d = 0; d < of.dims; d++, noise++, action++, mean++, given++) {
                *mean = answers[(int64_t)r * reader.last().out + d];
                *action = *mean + *noise * deviation[d];
                const float x = plan.center ? plan.center[d] + plan.half_range[d] * *action : *action;
                *given = x < plan.low[d] ? plan.low[d] : x > plan.high[d] ? plan.high[d] : x;
            }
    }
};

static Actor *new_actor(const Acting &plan) { return new MlpActor(plan); }
