// Included before the kernels, outside of their namespaces and instruction sets.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "helper.h"
#include "plan.h"
