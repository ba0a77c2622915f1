// Advantages of a rollout, from its last row to its first; any machine does that in next to no time.
#include <cstdint>

#include "plan.h"

extern "C" void levelhead_gae(const Returns *plan) {
    const Returns &p = *plan;
    const float decay = p.lam * p.gamma;
    for (int64_t t = p.steps - 1; t >= 0; t--)
        for (int64_t n = 0; n < p.columns; n++) {
            const int64_t i = t * p.columns + n;
            float advantage = 0.0f;
            if (p.valid[i]) {
                const float future = p.terminated[i] ? 0.0f : p.gamma * p.next_value[i];
                advantage = p.reward[i] + future - p.value[i];
                // What lies beyond the end of an episode stays there, even NaN.
                const bool goes_on = !p.terminated[i] && !p.truncated[i] && t + 1 < p.steps && decay != 0.0f;
                if (goes_on) advantage += decay * p.advantage[i + p.columns];
            }
            p.advantage[i] = advantage;
            p.target[i] = advantage + p.value[i];
        }
}
