// Memory of fixed size, aligned to a cache line, zero at first.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace bicrossnet {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : size_(size), data_(allocate(size)) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  const T& operator[](std::size_t i) const { return data_.get()[i]; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };

  static T* allocate(std::size_t size) {
    const std::size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
    void* data = nullptr;
    if (posix_memalign(&data, 64, bytes ? bytes : 64) != 0) throw std::bad_alloc();
    std::memset(data, 0, bytes);
    return static_cast<T*>(data);
  }

  std::size_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

template <class T>
Buffer<T> copy_of(const T* from, std::size_t size) {
  Buffer<T> buffer(size);
  std::memcpy(buffer.data(), from, size * sizeof(T));
  return buffer;
}

}  // namespace bicrossnet
