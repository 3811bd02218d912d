#include "team.h"

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

void Team::start(Call call, void* function) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    call_ = call;
    function_ = function;
    ++calls_;
  }
  wake_.notify_all();
}

void Team::work(int member) {
  uint64_t seen = 0;
  while (true) {
    Call call;
    void* function;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || calls_ != seen; });
      if (stopping_) return;
      // At most one ahead: a call ends only when all members have come to its last barrier.
      seen = calls_;
      call = call_;
      function = function_;
    }
    call(function, member);
    wait_for_all();
  }
}

// The last to arrive resets what the phase used and lets the others go. Who waits spins for about
// as long as a phase lasts and then sleeps: where other processes want the cores, the member that
// all wait for may not run at all, and spinning would take the very core that it needs.
void Team::wait_for_all() {
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    for (Range& range : ranges_) range.taken.store(0, std::memory_order_relaxed);
    {
      // Under the lock, so that nobody falls asleep between its last look and the call to wake.
      const std::lock_guard<std::mutex> lock(phase_mutex_);
      phase_.store(phase + 1, std::memory_order_release);
    }
    phase_ended_.notify_all();
    return;
  }
  const auto ended = [&] { return phase_.load(std::memory_order_acquire) != phase; };
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    if (ended()) return;
    pause();
  }
  std::unique_lock<std::mutex> lock(phase_mutex_);
  phase_ended_.wait(lock, ended);
}

}  // namespace bicrossnet
