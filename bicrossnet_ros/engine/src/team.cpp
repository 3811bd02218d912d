#include "team.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>

namespace bicrossnet {
namespace {

constexpr int kSpinsBeforeSleep = 6000;  // 20 to 70 microseconds

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int threads) : size_(threads), ranges_(threads) {
  try {
    for (int member = 1; member < threads; ++member) {
      threads_.emplace_back([this, member] { work(member); });
    }
  } catch (const std::system_error& error) {
    stop();
    throw std::runtime_error("only " + std::to_string(threads_.size() + 1) + " of " +
                             std::to_string(threads) + " threads can be started (" +
                             error.what() + "); ask for fewer");
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::start(void (*call)(const void*, Member&), const void* what, size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++job_.number;
    job_.first_phase = phase_.load(std::memory_order_relaxed);
    job_.call = call;
    std::memcpy(job_.what, what, bytes);
  }
  wake_.notify_all();
}

void Team::work(int index) {
  uint64_t seen = 0;
  while (true) {
    Job job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || job_.number != seen; });
      if (stopping_) return;
      job = job_;  // the latest; others may have come and gone meanwhile
    }
    seen = job.number;
    Member member(*this, index, job.first_phase);
    job.call(job.what, member);
  }
}

// Takes a task of a member's range; -1: none is left, or the phase is over.
int Team::take(int owner, uint64_t phase, int size) {
  std::atomic<uint64_t>& range = ranges_[owner].taken;
  uint64_t seen = range.load(std::memory_order_relaxed);
  while (true) {
    const uint64_t its_phase = seen >> kTaskBits;
    if (its_phase > phase) return -1;
    const uint64_t start = phase << kTaskBits;
    const int taken = its_phase == phase ? static_cast<int>(seen - start) : 0;
    if (taken >= size) return -1;
    if (range.compare_exchange_weak(seen, start + taken + 1, std::memory_order_relaxed)) {
      return taken;
    }
  }
}

void Team::end_phase(uint64_t phase) {
  done_.store(0, std::memory_order_relaxed);
  {
    // Under the lock, so that nobody falls asleep between its last look and the call to wake.
    const std::lock_guard<std::mutex> lock(phase_mutex_);
    phase_.store(phase + 1, std::memory_order_release);
  }
  phase_ended_.notify_all();
}

// Spins for about as long as a phase lasts, then sleeps: the thread that has the last task in hand
// may need this very core.
void Team::wait_for_end(uint64_t phase) {
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    if (is_over(phase)) return;
    pause();
  }
  std::unique_lock<std::mutex> lock(phase_mutex_);
  phase_ended_.wait(lock, [&] { return is_over(phase); });
}

}  // namespace bicrossnet
