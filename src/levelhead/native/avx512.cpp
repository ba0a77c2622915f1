// The kernels for avx512.
#if defined(__x86_64__)
#if defined(__clang__)
#error "clang takes no target from a pragma: build with GCC"
#endif
#include "headers.h"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
#define WIDTH 16
#define BLOCK 4
namespace avx512 {
#include "kernels.h"
}
#pragma GCC pop_options
#endif
