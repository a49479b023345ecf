// Hello is an application to put into an image: it answers on port 8080, and says on
// its standard output that it is ready. GREETING is what it answers with.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	greeting := os.Getenv("GREETING")
	if greeting == "" {
		greeting = "hello"
	}
	server := &http.Server{
		Addr:              ":8080",
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, greeting)
		}),
	}
	fmt.Println("hello: ready, with", greeting)
	log.Fatal(server.ListenAndServe())
}
