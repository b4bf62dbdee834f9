#pragma once

namespace srnas_fast {

// Whether a window's next number takes the place of its largest so far: the first of equal ones stays, as in
// torch, and a NaN stays whatever comes.
template <class T>
inline bool beats(T value, T best) {
    return (value > best) | (value != value);
}

}  // namespace srnas_fast
