// The threads of a session. All run the same function from end to end and share out the tasks of
// each of its phases (five in a unit, microseconds to hundreds of them long). A phase ends when
// its tasks are done, whoever did them: a thread that gets no core holds up nobody but for the
// task it has in hand, and when it comes late, it passes over the phases that ended without it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace bicrossnet {

class Team {
 public:
  // One thread's way through a call.
  class Member {
   public:
    // 0 for the caller.
    int index() const { return index_; }

    // One phase, come to by all members in the same order with the same count, at least 1: each
    // task runs once, in any member; nobody goes on before all are done. Which member runs a task
    // must not matter to its result. Every member begins with a range of its own, the same part of
    // a map in every phase, since its cache holds that part; then it helps the others.
    template <class Function>
    void share(int count, Function&& function);

   private:
    friend class Team;
    Member(Team& team, int index, uint64_t phase) : team_(team), index_(index), phase_(phase) {}

    Team& team_;
    const int index_;
    uint64_t phase_;  // the next one
  };

  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs function(member) in all members, the caller's thread being member 0. Returns when all its
  // phases have ended; other members may still be on their way to notice it, so that the function
  // is copied to them, and outside of its tasks it may use only what outlives the team.
  template <class Function>
  void run(const Function& function) {
    static_assert(std::is_trivially_copyable_v<Function> && sizeof(Function) <= sizeof(Job::what));
    Member caller(*this, 0, phase_.load(std::memory_order_relaxed));
    if (size_ > 1) {
      const auto call = [](const void* what, Member& member) {
        (*static_cast<const Function*>(what))(member);
      };
      start(call, &function, sizeof function);
    }
    function(caller);
  }

 private:
  struct Job {
    uint64_t number = 0;
    uint64_t first_phase = 0;
    void (*call)(const void* what, Member& member) = nullptr;
    alignas(16) unsigned char what[64];
  };

  // How many tasks of a member's range were taken, and in which phase: what belongs to an earlier
  // phase counts as none. On a cache line of its own.
  struct alignas(64) Range {
    std::atomic<uint64_t> taken{0};
  };
  static constexpr int kTaskBits = 24;

  int first_task(int member, int count) const {
    return static_cast<int>(static_cast<int64_t>(count) * member / size_);
  }
  bool is_over(uint64_t phase) const { return phase_.load(std::memory_order_acquire) != phase; }
  int take(int owner, uint64_t phase, int size);
  void end_phase(uint64_t phase);
  void wait_for_end(uint64_t phase);
  void start(void (*call)(const void*, Member&), const void* what, size_t bytes);
  void work(int index);
  void stop();

  const int size_;
  std::vector<Range> ranges_;
  alignas(64) std::atomic<int> done_{0};  // tasks of the present phase
  alignas(64) std::atomic<uint64_t> phase_{0};  // the present one, counted through all calls
  std::mutex phase_mutex_;
  std::condition_variable phase_ended_;

  std::mutex mutex_;
  std::condition_variable wake_;
  Job job_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

template <class Function>
void Team::Member::share(int count, Function&& function) {
  const int size = team_.size_;
  if (size == 1) {
    for (int task = 0; task < count; ++task) function(task);
    return;
  }
  const uint64_t phase = phase_++;
  if (team_.is_over(phase)) return;
  bool did_last = false;
  for (int i = 0; i < size; ++i) {
    const int owner = (index_ + i) % size;
    const int begin = team_.first_task(owner, count), end = team_.first_task(owner + 1, count);
    for (int task; (task = team_.take(owner, phase, end - begin)) >= 0;) {
      function(begin + task);
      did_last = team_.done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count;
    }
  }
  if (did_last) team_.end_phase(phase);
  else team_.wait_for_end(phase);
}

}  // namespace bicrossnet
