// All that is compiled once per instruction set.
#include "simd.h"
#include "network.h"
#include "losses.h"
#include "step.h"
#include "act.h"

extern const Code code;
const Code code{epochs, features, new_actor};
