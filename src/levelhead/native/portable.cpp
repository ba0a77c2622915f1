// The kernels for any machine.
#include "headers.h"
#define WIDTH 4
#define BLOCK 2
namespace portable {
#include "kernels.h"
}
