// Command go asks a Lakemesh server's fraud_detector about one transaction.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"time"

	agentv1 "github.com/lakemesh/lakemesh/gen/go/lakemesh/api/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
)

func main() {
	target := flag.String("target", "localhost:8000", "HOST:PORT of the server")
	flag.Parse()

	conn, err := grpc.NewClient(*target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	data, err := structpb.NewStruct(map[string]any{
		"transaction_id": "txn_12345", "amount": 5000, "merchant": "Electronics Store",
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := agentv1.NewAgentServiceClient(conn).Execute(ctx, &agentv1.ExecuteRequest{
		AgentName: "fraud_detector", Data: data,
	})
	if err != nil {
		log.Fatal(err)
	}
	result := answer.GetResult().AsMap()
	fmt.Println(result["decision"], result["score"])
}
