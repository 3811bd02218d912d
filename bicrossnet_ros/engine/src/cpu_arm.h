// What the back ends for ARM ask about the CPU.
#pragma once

#if defined(__aarch64__)

namespace bicrossnet {

// Whether the instructions udot and sdot are there.
bool has_dot_product();

// Whether this is a core that issues in order and loads 64 bits a cycle (Cortex-A53, A55 and their
// kin): one that wants its vectors loaded in halves.
bool loads_in_halves();

}  // namespace bicrossnet

#endif
