// The entry points, which choose what this machine can run.
#include "plan.h"

namespace avx512 {
void epochs(const Plan &);
}
namespace avx2 {
void epochs(const Plan &);
}
namespace portable {
void epochs(const Plan &);
}

enum Isa { PORTABLE, AVX2, AVX512 };

// So that a library that was built from other sources is not called.
extern "C" int64_t levelhead_layout() {
    return ((sizeof(Plan) * 1000 + sizeof(Batch)) * 1000 + sizeof(Group)) * 1000 + sizeof(Layer);
}

extern "C" int levelhead_best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PORTABLE;
}

extern "C" void levelhead_epochs(const Plan *plan, int isa) {
    switch (isa) {
#if defined(__x86_64__)
        case AVX512: return avx512::epochs(*plan);
        case AVX2: return avx2::epochs(*plan);
#endif
        default: return portable::epochs(*plan);
    }
}
