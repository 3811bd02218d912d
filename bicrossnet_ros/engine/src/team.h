// The threads of a session. All run the same function from end to end and share out the tasks of
// each of its phases. At the barriers between phases (there are about a hundred in a frame, some
// microseconds apart) they spin for a while, then sleep; between calls they sleep.
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
  template <class Function>
  void share(int count, Function&& function) {
    if (size_ == 1) {
      for (int task = 0; task < count; ++task) function(task);
      return;
    }
    for (int task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < count;) {
      function(task);
    }
    wait_for_all();
  }

 private:
  using Call = void (*)(void* function, int member);

  void start(Call call, void* function);
  void wait_for_all();
  void work(int member);
  void stop();

  const int size_;
  std::atomic<int> next_task_{0};
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
