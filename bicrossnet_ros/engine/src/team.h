// The threads of a session. All run the same function from end to end and share out the tasks of
// each of its phases. At the barriers between phases (five in a unit, microseconds to hundreds of
// them apart) they spin for a while, then sleep; between calls they sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace bicrossnet {

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs function(member) in all members, the caller being member 0, and waits for them.
  template <class Function>
  void run(Function&& function) {
    if (size_ == 1) return function(0);
    start([](void* f, int member) { (*static_cast<Function*>(f))(member); }, &function);
    function(0);
    wait_for_all();
  }

  // One phase, called by every member with the same count: each task runs once, in any member;
  // nobody returns before all are done. Which member runs a task must not matter to its result.
  // Every member begins with a range of its own, the same part of a map in every phase, since its
  // cache holds that part; then it helps the others.
  template <class Function>
  void share(int member, int count, Function&& function) {
    if (size_ == 1) {
      for (int task = 0; task < count; ++task) function(task);
      return;
    }
    for (int i = 0; i < size_; ++i) {
      const int owner = (member + i) % size_;
      const int begin = first_task(owner, count), end = first_task(owner + 1, count);
      std::atomic<int>& taken = ranges_[owner].taken;
      for (int task; (task = begin + taken.fetch_add(1, std::memory_order_relaxed)) < end;) {
        function(task);
      }
    }
    wait_for_all();
  }

 private:
  using Call = void (*)(void* function, int member);

  // How many tasks of a member's range were taken; on a cache line of its own.
  struct alignas(64) Range {
    std::atomic<int> taken{0};
  };

  int first_task(int member, int count) const {
    return static_cast<int>(static_cast<int64_t>(count) * member / size_);
  }
  void start(Call call, void* function);
  void wait_for_all();
  void work(int member);
  void stop();

  const int size_;
  std::vector<Range> ranges_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> phase_{0};
  std::mutex phase_mutex_;
  std::condition_variable phase_ended_;

  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t calls_ = 0;
  bool stopping_ = false;
  Call call_ = nullptr;
  void* function_ = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace bicrossnet
