// A second thread for half of the work.
#pragma once
#include <atomic>
#include <system_error>
#include <thread>

class Helper {
   public:
    explicit Helper(bool wanted) {
        if (!wanted) return;
        try {
            thread = std::thread([this] { serve(); });
        } catch (const std::system_error &) {  // then one thread does it all
        }
    }
    Helper(const Helper &) = delete;
    ~Helper() {
        if (!thread.joinable()) return;
        hand_over({});
        thread.join();
    }

    // Calls both, at the same time where there is a thread.
    template <class First, class Second>
    void both(First first, Second second) {
        if (!thread.joinable()) {
            first();
            second();
            return;
        }
        hand_over({[](void *call) { (*static_cast<Second *>(call))(); }, &second});
        first();
        wait(done, given.load(std::memory_order_relaxed));
    }

   private:
    struct Job {
        void (*run)(void *);
        void *call;
    };

    void hand_over(Job next) {
        job = next;
        given.fetch_add(1, std::memory_order_release);
    }

    void serve() {
        for (unsigned turn = 1;; turn++) {
            wait(given, turn);
            if (!job.run) return;
            job.run(job.call);
            done.store(turn, std::memory_order_release);
        }
    }

    // Jobs are of microseconds, which sleeping would double; whoever waits for longer lets others run.
    static void wait(const std::atomic<unsigned> &counter, unsigned value) {
        for (int spins = 0; counter.load(std::memory_order_acquire) != value; spins++)
            if (spins > 10000) std::this_thread::yield();
    }

    std::thread thread;
    Job job{};
    alignas(64) std::atomic<unsigned> given{0};
    alignas(64) std::atomic<unsigned> done{0};
};
