// The kernels for avx2.
#if defined(__x86_64__)
#if defined(__clang__)
#error "clang takes no target from a pragma: build with GCC"
#endif
#include "headers.h"
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define WIDTH 8
#define BLOCK 2
namespace avx2 {
#include "kernels.h"
}
#pragma GCC pop_options
#endif
