// Layers forward and backward. Matrices are row-major, [rows, features], their rows padded with zeros to whole vectors.

// Memory, zeroed: what is padded stays zero.
class Arena {
   public:
    template <class T>
    T *take(int64_t count) {
        const size_t bytes = (sizeof(T) * count + 63) / 64 * 64;
        void *p = std::aligned_alloc(64, bytes ? bytes : 64);
        if (!p) std::abort();
        std::memset(p, 0, bytes);
        blocks.push_back({p});
        return static_cast<T *>(p);
    }
    Arena() = default;
    Arena(const Arena &) = delete;
    ~Arena() {
        for (Block block : blocks) std::free(block.p);
    }

   private:
    struct Block {  // of this namespace, so that no other instruction set's code for the vector is taken for ours
        void *p;
    };
    std::vector<Block> blocks;
};

static inline int padded(int n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

// C[r, :] = start[r or all, :] + sum over i of A[r, i] B[i, :] for a block of ROWS rows and VECS vectors, which stay in
// registers.
template <int ROWS, int VECS>
static inline void tile(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t b_row, const float *start,
                        float *c, int64_t c_row, int inner) {
    Vec acc[ROWS][VECS];
    for (int v = 0; v < VECS; v++) {
        const Vec first = start ? load(start + v * WIDTH) : Vec{};
        for (int r = 0; r < ROWS; r++) acc[r][v] = first;
    }
    for (int i = 0; i < inner; i++) {
        Vec right[VECS];
        for (int v = 0; v < VECS; v++) right[v] = load(b + i * b_row + v * WIDTH);
        for (int r = 0; r < ROWS; r++) {
            const Vec left = splat(a[r * a_row + i * a_col]);
            for (int v = 0; v < VECS; v++) acc[r][v] += left * right[v];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECS; v++) store(c + r * c_row + v * WIDTH, acc[r][v]);
}

template <int VECS>
static void stripe(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t b_row, const float *start,
                   float *c, int64_t c_row, int rows, int inner) {
    int r = 0;
    for (; r + 6 <= rows; r += 6)
        tile<6, VECS>(a + r * a_row, a_row, a_col, b, b_row, start, c + r * c_row, c_row, inner);
    for (; r + 2 <= rows; r += 2)
        tile<2, VECS>(a + r * a_row, a_row, a_col, b, b_row, start, c + r * c_row, c_row, inner);
    if (r < rows) tile<1, VECS>(a + r * a_row, a_row, a_col, b, b_row, start, c + r * c_row, c_row, inner);
}

// C[rows, columns] = start + A[rows, inner] B[inner, columns]; columns is a multiple of WIDTH, and the row's length of
// B and C; A is read with any strides.
static void multiply(const float *a, int64_t a_row, int64_t a_col, const float *b, const float *start, float *c,
                     int rows, int columns, int inner) {
    int j = 0;
    for (; j + BLOCK * WIDTH <= columns; j += BLOCK * WIDTH)
        stripe<BLOCK>(a, a_row, a_col, b + j, columns, start ? start + j : nullptr, c + j, columns, rows, inner);
    for (; j < columns; j += WIDTH)
        stripe<1>(a, a_row, a_col, b + j, columns, start ? start + j : nullptr, c + j, columns, rows, inner);
}

// y = activation(y), and its slope.
static void activate(int32_t activation, float *y, float *slope, int64_t count) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        const Vec x = load(y + i);
        Vec f = x, d = splat(1.0f);
        switch (activation) {
            case TANH:
                f = tanh_(x);
                d = 1.0f - f * f;
                break;
            case RELU:
                f = choose(x > 0.0f, x, choose(x != x, x, splat(0.0f)));
                d = choose(x > 0.0f, d, splat(0.0f));
                break;
            case ELU: {
                const Vec e = expm1_(choose(x > 0.0f, splat(0.0f), x));
                f = choose(x > 0.0f, x, e);
                d = choose(x > 0.0f, d, e + 1.0f);
                break;
            }
            case SILU: {
                const Vec s = 1.0f / (1.0f + exp_(-x));
                f = x * s;
                d = s * (1.0f + x * (1.0f - s));
                break;
            }
        }
        store(y + i, f);
        store(slope + i, d);
    }
}

// One layer with room for part of a minibatch.
struct Room {
    Layer layer;
    int in, out;         // padded
    float *weight;       // [in, out], transposed
    float *plain;        // [outputs, in], padded
    float *bias;         // [out]
    float *y, *slope;    // [rows, out]
    float *dy;           // [rows, out]
    float *dweight;      // [outputs, in], or [inputs, out]
};

static void read_parameters(Room &room) {
    const Layer &layer = room.layer;
    for (int o = 0; o < layer.outputs; o++)
        std::memcpy(room.plain + (int64_t)o * room.in, layer.weight + (int64_t)o * layer.inputs,
                    sizeof(float) * layer.inputs);
    std::memcpy(room.bias, layer.bias, sizeof(float) * layer.outputs);
    for (int o = 0; o < room.out; o += WIDTH)
        for (int i = 0; i < room.in; i += WIDTH) {
            Vec square[WIDTH];
            for (int k = 0; k < WIDTH; k++)
                square[k] = o + k < layer.outputs ? load(room.plain + (int64_t)(o + k) * room.in + i) : Vec{};
            transpose(square);
            for (int k = 0; k < WIDTH; k++) store(room.weight + (int64_t)(i + k) * room.out + o, square[k]);
        }
}

static void forward(Room &room, const float *x, int rows) {
    multiply(x, room.in, 1, room.weight, room.bias, room.y, rows, room.out, room.layer.inputs);
    if (room.layer.activation != NONE) activate(room.layer.activation, room.y, room.slope, (int64_t)rows * room.out);
}

static void add_weights(const Layer &layer, const float *slope, int64_t by_output, int64_t by_input) {
    for (int o = 0; o < layer.outputs; o++)
        for (int i = 0; i < layer.inputs; i++)
            layer.weight_gradient[(int64_t)o * layer.inputs + i] += slope[o * by_output + i * by_input];
}

// From dy, the loss's gradient by what the layer answers: adds to that by its parameters, and writes that by its input
// where asked for.
static void backward(Room &room, const float *x, float *dx, int rows) {
    const Layer &layer = room.layer;
    for (int j = 0; j < room.out; j += WIDTH) {
        Vec total{};
        for (int64_t i = j; i < (int64_t)rows * room.out; i += room.out) {
            Vec dy = load(room.dy + i);
            if (layer.activation != NONE) store(room.dy + i, dy *= load(room.slope + i));
            total += dy;
        }
        float kept[WIDTH];
        store(kept, total);
        for (int k = 0; k < WIDTH && j + k < layer.outputs; k++) layer.bias_gradient[j + k] += kept[k];
    }
    if ((int64_t)layer.inputs * room.out < (int64_t)layer.outputs * room.in) {  // whichever is padded less
        multiply(x, 1, room.in, room.dy, nullptr, room.dweight, layer.inputs, room.out, rows);
        add_weights(layer, room.dweight, 1, room.out);
    } else {
        multiply(room.dy, 1, room.out, x, nullptr, room.dweight, layer.outputs, room.in, rows);
        add_weights(layer, room.dweight, room.in, 1);
    }
    if (dx) multiply(room.dy, room.out, 1, room.plain, nullptr, dx, rows, room.in, layer.outputs);
}

static Room make_room(const Layer &layer, int rows, Arena &arena) {
    Room room{};
    room.layer = layer;
    room.in = padded(layer.inputs), room.out = padded(layer.outputs);
    room.weight = arena.take<float>((int64_t)room.in * room.out);
    room.plain = arena.take<float>((int64_t)layer.outputs * room.in);
    room.bias = arena.take<float>(room.out);
    for (float **matrix : {&room.y, &room.slope, &room.dy}) *matrix = arena.take<float>((int64_t)rows * room.out);
    room.dweight = arena.take<float>((int64_t)room.out * room.in);
    return room;
}

static std::vector<Room> make_rooms(const Layer *layers, int n, int rows, Arena &arena) {
    std::vector<Room> rooms;
    for (int i = 0; i < n; i++) rooms.push_back(make_room(layers[i], rows, arena));
    return rooms;
}

static void read_parameters(std::vector<Room> &rooms) {
    for (Room &room : rooms) read_parameters(room);
}

static const float *forward(std::vector<Room> &rooms, const float *x, int rows) {
    for (Room &room : rooms) {
        forward(room, x, rows);
        x = room.y;
    }
    return x;
}

// The gradient by the stack's input goes to dx unless that is null.
static void backward(std::vector<Room> &rooms, const float *x, float *dx, int rows) {
    for (int i = (int)rooms.size() - 1; i >= 0; i--)
        backward(rooms[i], i ? rooms[i - 1].y : x, i ? rooms[i - 1].dy : dx, rows);
}
