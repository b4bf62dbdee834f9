// Scratch that lives between calls: what a program needs beside its arguments, without a page fault a call.
//
// One arena serves one call at a time; calls at the same time take several. What the arenas of the process
// keep is bounded: beyond the bound, memory goes back to the system when its call ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace srnas_fast {

class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Room for so many elements, from a cache line's start on, uninitialised.
    template <class T>
    T* take(int64_t elements) {
        return static_cast<T*>(take_bytes(size_t(elements) * sizeof(T)));
    }
    // What was taken since used() told this number is free again.
    size_t used() const { return used_; }
    void rewind(size_t used) { used_ = used; }
    // Begins a call: nothing is taken; what earlier calls had to take in several blocks is one block now.
    void begin();
    size_t peak() const { return peak_; }
    size_t held() const;

private:
    struct Block {
        char* data;
        size_t begin, size;  // begin: what is taken before its first byte
    };
    void* take_bytes(size_t bytes);
    void free_blocks();

    std::vector<Block> blocks_;
    size_t used_ = 0, peak_ = 0;
};

// Gives back what was taken while it lived.
class Temporary {
public:
    explicit Temporary(Arena& arena) : arena_(arena), used_(arena.used()) {}
    ~Temporary() { arena_.rewind(used_); }
    Temporary(const Temporary&) = delete;
    Temporary& operator=(const Temporary&) = delete;

private:
    Arena& arena_;
    size_t used_;
};

// An arena for one call.
class Lease {
public:
    Lease();
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Arena& arena() { return *arena_; }

private:
    std::unique_ptr<Arena> arena_;
};

// Bytes that the idle arenas of the process hold.
size_t scratch_held();
// Gives them back to the system.
void scratch_release();
// The most bytes that a call took since the last look.
size_t scratch_peak();

}  // namespace srnas_fast
