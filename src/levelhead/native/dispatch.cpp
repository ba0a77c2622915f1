// The entry points, which choose what this machine can run.
#include <initializer_list>

#include "plan.h"

namespace portable { extern const Code code; }
namespace avx2 { extern const Code code; }
namespace avx512 { extern const Code code; }

enum Isa { PORTABLE, AVX2, AVX512 };

// So that a library that lays out plans otherwise is not called.
extern "C" int64_t levelhead_layout() {
    int64_t digits = 0;
    for (int64_t size : {sizeof(Plan), sizeof(Acting), sizeof(Returns), sizeof(Batch), sizeof(Group), sizeof(Layer)})
        digits = digits * 1000 + size;
    return digits;
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

static const Code &code(int isa) {
#if defined(__x86_64__)
    if (isa == AVX512) return avx512::code;
    if (isa == AVX2) return avx2::code;
#endif
    return portable::code;
}

extern "C" void levelhead_epochs(const Plan *plan, int isa) { code(isa).epochs(*plan); }

extern "C" void levelhead_features(const Reading *plan, const void *observation, int64_t rows, float *answers, int isa) {
    code(isa).features(*plan, observation, rows, answers);
}

extern "C" Actor *levelhead_new_actor(const Acting *plan, int isa) { return code(isa).new_actor(*plan); }

extern "C" void levelhead_act(Actor *actor, int64_t t, const uint8_t *legal) { actor->act(t, legal); }

extern "C" void levelhead_delete_actor(Actor *actor) { delete actor; }
