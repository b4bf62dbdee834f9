#include "arena.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>

namespace srnas_fast {
namespace {

constexpr size_t kLine = 64, kPage = size_t(2) << 20;
constexpr size_t kMostKept = size_t(512) << 20;  // of all idle arenas

struct Pool {
    std::mutex lock;
    std::vector<std::unique_ptr<Arena>> idle;
    size_t held = 0;
    std::atomic<size_t> peak{0};
};

Pool& pool() {
    static Pool* const made = [] {
        // A process that forks while another of its threads holds the lock must not leave it locked for ever.
        pthread_atfork([] { pool().lock.lock(); }, [] { pool().lock.unlock(); },
                       [] { pool().lock.unlock(); });
        return new Pool;  // never destroyed: threads may outlive what is static
    }();
    return *made;
}

}  // namespace

Arena::~Arena() { free_blocks(); }

void Arena::free_blocks() {
    for (const Block& block : blocks_) munmap(block.data, block.size);
    blocks_.clear();
}

size_t Arena::held() const {
    size_t sum = 0;
    for (const Block& block : blocks_) sum += block.size;
    return sum;
}

void Arena::begin() {
    used_ = 0;
    if (blocks_.size() > 1) {
        const size_t needed = peak_;
        free_blocks();
        take_bytes(needed);
        used_ = 0;
    }
    peak_ = 0;
}

void* Arena::take_bytes(size_t bytes) {
    bytes = (bytes + kLine - 1) / kLine * kLine;
    // Positions run through all blocks; what does not fit into the rest of one begins in the next.
    for (Block& block : blocks_) {
        const size_t begin = std::max(used_, block.begin);
        if (begin + bytes <= block.begin + block.size) {
            used_ = begin + bytes;
            peak_ = std::max(peak_, used_);
            return block.data + (begin - block.begin);
        }
    }
    const size_t before = blocks_.empty() ? 0 : blocks_.back().begin + blocks_.back().size;
    const size_t size = (std::max(bytes, std::min(before, kMostKept)) + kPage - 1) / kPage * kPage;
    void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    madvise(data, size, MADV_HUGEPAGE);  // fewer faults and misses where the system has it
    blocks_.push_back({static_cast<char*>(data), before, size});
    used_ = before + bytes;
    peak_ = std::max(peak_, used_);
    return data;
}

Lease::Lease() {
    Pool& all = pool();
    {
        const std::lock_guard<std::mutex> guard(all.lock);
        if (!all.idle.empty()) {
            arena_ = std::move(all.idle.back());
            all.idle.pop_back();
            all.held -= arena_->held();
        }
    }
    if (!arena_) arena_ = std::make_unique<Arena>();
    arena_->begin();
}

Lease::~Lease() {
    Pool& all = pool();
    const size_t now = arena_->peak();
    size_t before = all.peak.load();
    while (before < now && !all.peak.compare_exchange_weak(before, now)) {
    }
    const std::lock_guard<std::mutex> guard(all.lock);
    if (all.held + arena_->held() > kMostKept) return;  // unmapped with the lease
    all.held += arena_->held();
    all.idle.push_back(std::move(arena_));
}

size_t scratch_held() {
    const std::lock_guard<std::mutex> guard(pool().lock);
    return pool().held;
}

void scratch_release() {
    const std::lock_guard<std::mutex> guard(pool().lock);
    pool().idle.clear();
    pool().held = 0;
}

size_t scratch_peak() { return pool().peak.exchange(0); }

}  // namespace srnas_fast
