// Mean and biased variance of each channel, in one pass over memory.
#pragma once

#include <cstdint>

namespace srnas_fast {

// z is dense: element i of `size` (more than none) is in channel (i / inner) % channels.
template <class T>
void channel_moments(const T* z, int64_t size, int64_t channels, int64_t inner, T* mean, T* variance,
                     int threads);

}  // namespace srnas_fast
