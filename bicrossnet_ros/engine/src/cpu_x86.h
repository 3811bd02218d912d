// What the CPU and the operating system together support; see cpu_x86.cpp.
#pragma once

namespace bicrossnet {

bool cpu_runs_x86_64_v2();
bool cpu_runs_avx2();
bool cpu_runs_avx512();

}  // namespace bicrossnet
