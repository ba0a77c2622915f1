// Vectors of WIDTH floats and the functions of them that networks need. Included once per instruction set, in its
// namespace; the compiler's vector extensions do the rest.

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));
typedef float Unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static inline Vec load(const float *p) { return *reinterpret_cast<const Unaligned *>(p); }
static inline void store(float *p, Vec v) { *reinterpret_cast<Unaligned *>(p) = v; }
static inline Vec splat(float x) { return x - Vec{}; }
static inline Vec choose(Int where, Vec a, Vec b) { return (Vec)((where & (Int)a) | (~where & (Int)b)); }
static inline Vec least(Vec a, Vec b) { return choose(a < b, a, b); }
static inline Vec most(Vec a, Vec b) { return choose(a > b, a, b); }
static inline Vec magnitude(Vec a) { return (Vec)((Int)a & 0x7fffffff); }

static inline float sum(Vec v) {  // halves first: the order does not depend on the compiler
    float x[WIDTH];
    store(x, v);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

static inline Vec column(const float *p, int64_t stride) {
    Vec v;
    for (int i = 0; i < WIDTH; i++) v[i] = p[i * stride];
    return v;
}

static inline void set_column(float *p, int64_t stride, Vec v) {
    for (int i = 0; i < WIDTH; i++) p[i * stride] = v[i];
}

// Of two vectors one number each in turn, from one of the first on.
static inline Vec interleave(Vec a, Vec b, int first) {
#if defined(__clang__)
    Vec both;
    for (int i = 0; i < WIDTH; i++) both[i] = (i & 1 ? b : a)[first + i / 2];
    return both;
#else
    Int from;
    for (int i = 0; i < WIDTH; i++) from[i] = first + i / 2 + (i & 1 ? WIDTH : 0);
    return __builtin_shuffle(a, b, from);
#endif
}

// Rows of a square become its columns: its upper and lower half are shuffled into one another, as often as it takes.
static inline void transpose(Vec (&rows)[WIDTH]) {
    for (int turn = 1; turn < WIDTH; turn *= 2) {
        Vec next[WIDTH];
        for (int i = 0; i < WIDTH / 2; i++) {
            next[2 * i] = interleave(rows[i], rows[i + WIDTH / 2], 0);
            next[2 * i + 1] = interleave(rows[i], rows[i + WIDTH / 2], WIDTH / 2);
        }
        for (int i = 0; i < WIDTH; i++) rows[i] = next[i];
    }
}

// 2^n for whole n in [-126, 127].
static inline Vec power_of_two(Int n) { return (Vec)((n + 127) << 23); }

static inline Vec not_a_number_of(Vec x, Vec y) { return choose(x != x, x, y); }

// x = k ln 2 + r with |r| <= ln 2 / 2, and e^r - 1 by its Taylor polynomial.
struct Reduced {
    Vec power;  // e^r - 1
    Int k;
};

static inline Reduced reduce(Vec x) {
    const Vec n = x * 1.44269504f + 12582912.0f - 12582912.0f;  // rounded to a whole number
    Vec r = x - n * 0.693359375f;  // ln 2 in two parts, the first of few digits
    r = r + n * 2.12194440e-4f;
    Vec p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    return {p * r * r + r, __builtin_convertvector(n, Int)};
}

static inline Vec scaled(Vec x, Int k) {  // x 2^k, in two factors, as 2^128 is no float
    const Int half = k >> 1;
    return x * power_of_two(half) * power_of_two(k - half);
}

static inline Vec exp_(Vec x) {
    const Reduced e = reduce(least(most(x, splat(-87.3f)), splat(88.7f)));
    const Vec y = choose(x < -87.3f, splat(0.0f), scaled(e.power + 1.0f, e.k));
    return not_a_number_of(x, choose(x > 88.7f, splat(__builtin_inff()), y));
}

// Exact to a few units in the last place also near 0, where e^x - 1 would cancel.
static inline Vec expm1_(Vec x) {
    const Reduced e = reduce(least(most(x, splat(-87.3f)), splat(88.7f)));
    const Int bounded = e.k > 126 ? 126 : e.k;
    const Vec y = scaled(e.power + (1.0f - power_of_two(-bounded)), e.k);
    return not_a_number_of(x, choose(x > 88.7f, splat(__builtin_inff()), y));
}

// Natural logarithm of positive normal numbers; m in [sqrt(1/2), sqrt(2)), the series of atanh((m - 1) / (m + 1)).
static inline Vec log_(Vec x) {
    Int bits = (Int)x;
    Int k = (bits - 0x3f3504f3) >> 23;
    const Vec m = (Vec)(bits - (k << 23));
    const Vec s = (m - 1.0f) / (m + 1.0f), z = s * s;
    Vec p = z * (1.0f / 9.0f) + 1.0f / 7.0f;
    p = p * z + 1.0f / 5.0f;
    p = p * z + 1.0f / 3.0f;
    const Vec series = 2.0f * (s + s * z * p), n = __builtin_convertvector(k, Vec);
    return n * 0.693359375f + (series - n * 2.12194440e-4f);
}

// x P(x^2) / Q(x^2), fitted for the smallest relative error up to 7.91, where tanh is 1 in float32; within 3e-7.
static inline Vec tanh_(Vec x0) {
    const Vec x = least(most(x0, splat(-7.91f)), splat(7.91f)), z = x * x;
    Vec p = z * -1.18944164e-13f + 6.47310122e-11f;
    p = p * z - 2.25080648e-8f;
    p = p * z + 1.16856418e-5f;
    p = p * z + 3.15329502e-3f;
    p = p * z + 1.31278202e-1f;
    p = p * z + 1.0f;
    Vec q = z * 2.61880807e-4f + 2.46904958e-2f;
    q = q * z + 4.6461153e-1f;
    q = q * z + 1.0f;
    return not_a_number_of(x0, x * p / q);
}

static inline Vec root(Vec x) {
    Vec y{};
    for (int i = 0; i < WIDTH; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}
